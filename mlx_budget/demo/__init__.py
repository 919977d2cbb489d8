"""A small reasoning model that ships with the package, and how it is made."""
