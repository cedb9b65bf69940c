"""Admission, lists, look-ups and quotas of jobs."""
