"""Routes for operators: jobs, models, tenants, the audit log, probes."""
