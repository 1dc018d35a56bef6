"""The firewall: tables, sets and maps, published ports."""
