"""Deletion of jobs and files: by age, number and size, with their jobs, and of orphans."""
