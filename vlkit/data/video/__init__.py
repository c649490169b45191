"""Videos: which frames a file has, when each is shown, and reading chosen ones.

A caller needs ``clip_frames`` (frames of a clip), ``frame_source`` (frames of a dataset's records), ``probe`` (what a
file holds, or why it is damaged), ``make_frames`` (decode a dataset once) or ``write`` (MP4). From the top down:

===============  ======================================================================================================
frame_source     frames of each record of a split: from frame folders where there are any, else decoded
frame_folders    frame folders on disk: their layout, writing, reading and checking
make_frames      decodes every clip of a dataset into frame folders, in parallel
frame_batch      frames of a batch of videos in host memory
clip_frames      ``read_frames``: chooses frames by time, then decodes only those; windows of long videos
decode           decodes chosen frames, by decord or PyAV
frame_table      which frames a file has and when each is shown: from its packets, or by decoding
listing          what header and packets say, and what the decoder gives; judges damage
packets          reads the packets of a file
time_axis        time stamps (repeated, missing, restarting) to seconds
orientation      turns and mirrors frames upright
truncation       is a file as long as its container says?
containers       opens a file and picks the video stream
probe            decodes a file completely and says what it holds
write            writes MP4 files
===============  ======================================================================================================
"""
