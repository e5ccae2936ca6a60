# Everything that a person or CI does here is a target; `make` alone lists them.
# Needs make and Python >= 3.11 (PYTHON=python3.13 picks another one); the rest is installed into $(VENV).

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= auto
ARGS    ?=
SCHEDULES ?= 1000000

PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
SAM    := SAM_CLI_TELEMETRY=0 .venv-deploy/bin/sam
BUILT  := .aws-sam/build/template.yaml
OPS    := .venv-deploy/bin/python -m ops
OPS_READY := $(STAMP) .venv-deploy/.installed
# From the command line alone: a shell may have an ENV of its own.
GIVEN   = $(if $(findstring command,$(origin $(1))),$($(1)))
FOR_ENV = $(if $(call GIVEN,ENV),--env $(ENV))
TOOLS  := .venv-deploy/.installed .venv-checkov/.installed .venv-lambda/.installed .venv-browser/.installed

# What the artifact is made of. The directories are there so that make notices a deleted file.
PACKAGED := requirements/runtime.txt $(shell find handler -name '*.py' -o -name '*.json' -o -type d ! -name __pycache__) \
  $(wildcard infra/*.sql infra/ca infra/ca/*.pem)

# A Python 3.13 that really runs (a version manager's shim may exist without one behind it), or nothing.
DEPLOYED_PYTHON = $(shell for candidate in python3.13 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13.*/bin/python3.13 \
  "$$HOME"/.local/share/uv/python/cpython-3.13.*/bin/python3.13; \
  do "$$candidate" -c 'import sys, venv; print(sys.executable)' 2>/dev/null && break; done)

# Packages are installed without bytecode, which saves a third of `make setup`. The first import writes it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Use

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## install everything into .venv (other targets do it when needed)

.PHONY: demo
demo: $(STAMP) ## two cycles on a made-up fleet; ARGS="--probe control_plane --watch", ARGS="--explain still-beating", ARGS=--help lists the rest
	@$(PY) -m sandbox.demo $(ARGS)

##@ Deploy

.PHONY: build
build: $(BUILT) ## build what Lambda runs, into .aws-sam/build, and the list of what it is made of (sbom.cdx.json)

.PHONY: validate
validate: .venv-deploy/.installed .venv-checkov/.installed ## check the templates with SAM, cfn-lint and checkov
	$(SAM) validate --lint --region us-east-1 --template infra/template.yaml
	.venv-deploy/bin/cfn-lint infra/template.yaml infra/target.yaml
	.venv-checkov/bin/checkov --quiet --compact --skip-download --framework cloudformation --file infra/template.yaml infra/target.yaml

.PHONY: deploy
deploy: $(OPS_READY) ## deploy to AWS, or upgrade; the first time it asks; ENV=staging is another stack; ARGS=--plan only shows the steps
	@MAKE="$(MAKE)" $(OPS).deploy $(FOR_ENV) $(ARGS)

.PHONY: mode
mode: $(OPS_READY) ## MODE=apply lets a deployed stack flip and restart, MODE=dry-run stops that
	@$(OPS).mode $(or $(call GIVEN,MODE),$(error MODE is missing: make mode MODE=apply, or MODE=dry-run)) $(FOR_ENV) $(ARGS)

.PHONY: verify
verify: $(OPS_READY) ## check a deployed stack: its queries, alarms, queues and schedule, and a dry run
	@$(OPS).verify $(FOR_ENV) $(ARGS)

.PHONY: explain
explain: $(OPS_READY) ## what a deployed stack knows of WORKSPACE=… (or of an instance), what a cycle would do with it, and why
	@$(OPS) explain "$(or $(call GIVEN,WORKSPACE),$(error WORKSPACE is missing: make explain WORKSPACE=id, or i-…))" $(FOR_ENV) $(ARGS)

.PHONY: ops
ops: $(OPS_READY) ## an operator's commands: make ops ARGS="status", "hold --all --reason …", "release …", "override-breaker", "--help"
	@$(OPS) $(ARGS) $(FOR_ENV)

.PHONY: report
report: $(OPS_READY) ## show a report, an explanation or the log: FILE=out.json; ARGS="--html out.html" also writes a page
	@$(OPS).report "$(or $(call GIVEN,FILE),$(error FILE is missing: make report FILE=out.json))" $(ARGS)

.PHONY: undeploy
undeploy: $(OPS_READY) ## remove a stack and its secrets; it names what stays
	@$(OPS).undeploy $(FOR_ENV) $(ARGS)

# Two files for whoever deploys with other tools. BUCKET in the template stands for the bucket with the artifact.
.PHONY: release
release: $(BUILT) ## pack the artifact and a template that refers to it, into .aws-sam/release
	@$(PY) infra/release.py .aws-sam/build .aws-sam/release

# SAM calls this back for each function, with ARTIFACTS_DIR; all get the same artifact.
.PHONY: build-Reconciler build-StateChanges build-Installer
build-Reconciler build-StateChanges build-Installer:
	@$(PY) infra/build.py "$(ARTIFACTS_DIR)" --python "$(DEPLOYED_PYTHON)"

$(BUILT): infra/template.yaml infra/build.py infra/sbom.py pyproject.toml $(PACKAGED) Makefile | $(STAMP) .venv-deploy/.installed
	$(SAM) build --template infra/template.yaml
	@$(PY) infra/sbom.py .aws-sam/build/Reconciler --bill .aws-sam/build/sbom.cdx.json

##@ Develop

.PHONY: test
test: $(STAMP) $(BUILT) $(TOOLS) ## run the tests, with coverage; ARGS="-k breaker" narrows them, and then no coverage is too low
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered $(if $(ARGS),--cov-fail-under=0) $(ARGS)

.PHONY: soak
soak: $(STAMP) ## ten minutes: a million schedules, then the real handler while everything goes wrong; SCHEDULES=0 ARGS="--minutes 1"
	@$(PY) -m tests.simulation --schedules $(SCHEDULES)
	@$(PY) -m tests.soak $(ARGS)

.PHONY: simulate
simulate: $(STAMP) ## search random schedules for one that does harm; ARGS="--schedules 1000000", ARGS=--help lists the rest
	@$(PY) -m tests.simulation $(ARGS)

.PHONY: bench
bench: .venv-bench/.installed $(BUILT) ## measure beside the peers (ten minutes); writes bench/results.json, README's figures and bench/plots
	$(PY) -m bench $(ARGS)
	$(if $(ARGS),,.venv-bench/bin/python -m bench.plots)

.PHONY: dashboard
dashboard: $(STAMP) .venv-bench/.installed .venv-deploy/.installed ## draw the template's dashboard over a rehearsed night, into docs/dashboard.png
	@$(PY) -m tests.dashboard | .venv-bench/bin/python -m tests.dashboard.drawing docs/dashboard.png

.PHONY: demo-picture
demo-picture: $(STAMP) ## record `make demo` into docs/demo.svg, which README shows
	@$(PY) -m sandbox.picture docs/demo.svg

.PHONY: profile
profile: .venv-bench/.installed ## show where the CPU time of a 100,000-row cycle goes
	$(PY) -m bench.profile_cycle $(ARGS)

.PHONY: mutate
mutate: .venv-mutate/.installed ## break the pure modules in every way, and list what no unit test notices; ARGS="'handler.domain.decide.*'" narrows it
	@rm -rf mutants
	.venv-mutate/bin/mutmut run $(ARGS)
	.venv-mutate/bin/mutmut results

.PHONY: lint
lint: $(STAMP) ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

.PHONY: audit
audit: .venv-audit/.installed ## look for known vulnerabilities in what is deployed; asks PyPI, so it needs the network
	.venv-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements/runtime.txt $(ARGS)

.PHONY: licences
licences: $(BUILT) ## rewrite docs/licences.md from what is in the artifact
	@$(PY) infra/sbom.py .aws-sam/build/Reconciler --licences

.PHONY: guards
guards: $(STAMP) ## remove each guard of docs/safety.md in turn, and check that its test fails (minutes); ARGS=breaker picks some
	@$(PY) -m tests.guards $(ARGS)

.PHONY: format
format: $(STAMP) ## rewrite the code in the project's format, with the safe fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

UV_COMPILE = $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)

# Wheels alone, here and wherever something is installed: building a package would run code that no hash covers.
# The tests run what is deployed: dev.txt takes the versions of runtime.txt, and mutate.txt those of dev.txt.
.PHONY: lock
lock: $(STAMP) ## pin the dependencies of pyproject.toml into requirements/*.txt; ARGS=--upgrade moves to the newest versions
	$(UV_COMPILE) --output-file requirements/runtime.txt pyproject.toml
	$(UV_COMPILE) --output-file requirements/dev.txt --constraints requirements/runtime.txt pyproject.toml --group dev
	$(UV_COMPILE) --output-file requirements/mutate.txt --constraints requirements/dev.txt pyproject.toml --group mutate
	$(UV_COMPILE) --output-file requirements/deploy.txt --group deploy
	$(UV_COMPILE) --output-file requirements/checkov.txt --group checkov
	$(UV_COMPILE) --output-file requirements/lambda.txt --group lambda
	$(UV_COMPILE) --output-file requirements/browser.txt --group browser
	$(UV_COMPILE) --output-file requirements/bench.txt --group bench
	$(UV_COMPILE) --output-file requirements/audit.txt --group audit

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf .venv .venv-* .aws-sam .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# For .ci/run, which tests on it.
.PHONY: deployed-python
deployed-python:
	@echo "$(DEPLOYED_PYTHON)"

# --- how .venv is made ---------------------------------------------------------------------------------------

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("error: Python 3.11 or newer is needed, and %s is %s. Name another one: make PYTHON=python3.13"
             % (sys.executable, sys.version.split()[0]))
print("Setting up $(VENV) with Python %s; this takes half a minute, once." % sys.version.split()[0])
endef
export CHECK_PYTHON

# pip prints several lines for each package: they become a counter; stderr passes through. The pipe loses pip's exit
# code, so a file marks a complete installation.
$(STAMP): requirements/dev.txt
	@command -v $(PYTHON) >/dev/null || { echo 'error: no $(PYTHON) on PATH; name another one: make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@$(PYTHON) -m venv --clear $(VENV)
	@{ $(PY) -m pip install --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
	     --no-compile --progress-bar off --requirement requirements/dev.txt && touch $(STAMP).complete; } \
	  | awk -v total="$$(grep '==' requirements/dev.txt | grep -cv win32)" ' \
	      /^(Collecting|Processing) / { printf "\r  %2d of %d packages", ++n, total; fflush() } \
	      /^Installing / { printf "\r  writing %d packages   ", n; fflush() } \
	      END { printf "\r%40s\r", "" }'
	@test -f $(STAMP).complete || { echo 'error: the packages could not be installed; pip says why above' >&2; exit 1; }
	@mv $(STAMP).complete $(STAMP)

# --- the tools that cannot share .venv, each set in an environment of its own ---------------------------------------

.venv-%/.installed: requirements/%.txt | $(STAMP)
	@echo "Setting up .venv-$*, once."
	@$(PY) -m uv venv --quiet --clear --python "$(if $(filter lambda,$*),$(or $(DEPLOYED_PYTHON),$(PY)),$(PY))" .venv-$*
	@$(PY) -m uv pip install --quiet --require-hashes --only-binary :all: --no-deps --python .venv-$* --requirement $<
	@touch $@
