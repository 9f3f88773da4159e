"""The commands: each is a module that cli imports when it is used."""
