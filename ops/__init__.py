"""What an operator runs from a laptop: deploy, mode, verify, undeploy. It runs in .venv-deploy, beside SAM."""
