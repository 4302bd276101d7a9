"""Displays of VMs over WebSockets, for those who bring a ticket."""
