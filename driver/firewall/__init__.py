"""The firewall: what the tables hold, when they come and go, which ports are published."""
