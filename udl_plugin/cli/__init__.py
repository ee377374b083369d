"""The commands that prepare and inspect; each is thin, one module a command. (udl-train and udl-test are beside us.)"""
