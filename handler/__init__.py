"""The instance-state reconciler: what is deployed to AWS Lambda."""
