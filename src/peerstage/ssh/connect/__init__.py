"""The connection below SSH: TCP, jump hosts, ProxyCommand."""
