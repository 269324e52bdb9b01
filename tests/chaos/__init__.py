"""A store that is seen through the worst of networks, and the proof that the proxy is one."""
