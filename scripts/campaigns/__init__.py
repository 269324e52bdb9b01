"""Long runs of the whole system on a real S3 server, with their results written down."""
