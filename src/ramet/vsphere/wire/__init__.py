"""Between bytes and values of the schema: XML, JSON, HTTP."""
