"""What is deleted: by age, number and size, and with the jobs that it belongs to."""
