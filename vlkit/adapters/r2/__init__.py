"""R2-Tuning: a recurrent block that refines clips of a video from the last layers of both frozen towers."""
