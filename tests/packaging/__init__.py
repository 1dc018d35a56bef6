"""What makes pynet a service of a machine; installed into folders here, never on the machine."""
