"""The scheduler: accepts jobs and assigns them to devices."""
