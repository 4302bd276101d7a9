"""The server's managers beside the inventory: options, licenses, custom fields, events, performance."""
