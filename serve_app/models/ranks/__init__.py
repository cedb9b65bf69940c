"""One network on several devices: a process for each, called a rank, which compute forwards together."""
