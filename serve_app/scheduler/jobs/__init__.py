"""The course of jobs: accepting them, listing them, and what quotas count."""
