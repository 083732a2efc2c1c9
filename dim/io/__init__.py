"""Files and tables on any storage: local disks, S3 and Google Cloud Storage."""
