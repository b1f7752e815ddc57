"""The embedded suite `digits-rib`: the whole protocol in a minute, on any machine, offline."""
