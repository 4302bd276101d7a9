"""Files of VMs over HTTP, and pictures of their displays."""
