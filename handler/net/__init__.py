"""Calls over the network, each bounded as a whole: HTTP by requests, AWS by boto3."""
