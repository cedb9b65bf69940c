"""What every dialect renders: submissions, jobs, files and models behind one object. No HTTP."""
