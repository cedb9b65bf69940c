"""The server without its wire formats: submissions, jobs, files and models behind one object. No HTTP."""
