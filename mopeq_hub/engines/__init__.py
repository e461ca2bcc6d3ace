"""Where units of work are done: on this machine, on a Ray cluster, as a job on the Hub."""
