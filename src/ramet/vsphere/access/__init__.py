"""Who gets in: sessions, roles and privileges, users as clients ask for them, and the audit of calls."""
