"""What stands in the inventory beside the machines: folders, datacenter, host, pool, datastore, networks."""
