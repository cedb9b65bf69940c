"""`serve-app up`: processes of one machine, from their start to their end."""
