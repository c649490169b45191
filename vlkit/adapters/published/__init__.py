"""Names of published weights."""
