# The front door. `make` alone lists what there is; every target that needs venv/ makes it first.
# All paths are relative, so a checkout in a folder with spaces in its name works.

PY := venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup-all setup install install-force init check-deps train train-multimodal watch generate info serve serve-dev bench soak \
	test quick-test test-slow test-gpu test-browser lint image image-push image-digest image-sbom obs-up obs-down verify-deploy verify-cluster \
	clean clean-checkpoints clean-all runtime dev

##@ Start here
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'ARGS="..." passes flags on:  make train ARGS="--preset small --time 10m"'

train: ARGS ?= --preset quick
train: runtime ## Train a model (ARGS="--preset quick", two minutes)
	$(PY) train_cli.py $(ARGS)

train-multimodal: runtime ## Train a model that sees and hears (ARGS="--time 10m")
	$(PY) train_cli.py --preset multimodal $(ARGS)

watch: HOST = 127.0.0.1
watch: PORT ?= 8001
watch: runtime ## See the runs in the browser while they train (HOST=127.0.0.1 PORT=8001)
	@$(PY) train_cli.py watch --host $(HOST) --port $(PORT) $(ARGS)

generate: runtime ## Write text with the newest model (ARGS="--prompt 'Once upon'")
	$(PY) generate.py $(ARGS)

info: ARGS ?= --preset quick
info: runtime ## Configuration, parameters, memory, and what this machine offers
	@$(PY) train_cli.py plan --measure $(ARGS)

serve: HOST = 127.0.0.1
serve: PORT ?= 8000
serve: runtime ## Answer over HTTP with the newest model (HOST=127.0.0.1 PORT=8000)
	@$(PY) serve.py --host $(HOST) --port $(PORT) $(ARGS)

serve-dev: HOST = 127.0.0.1
serve-dev: PORT ?= 8000
serve-dev: runtime ## The same for developers: reloads code, /docs, readable logs
	@$(PY) serve.py --dev --host $(HOST) --port $(PORT) $(ARGS)

##@ Set-up
setup-all: ## Everything: setup, init, check-deps, quick-test
	@sh setup.sh all

setup: ## Make venv/ and install requirements.txt there
	@sh setup.sh setup

install: ## Install into the virtual environment that is active now
	@sh setup.sh install

install-force: ## Install into the current Python, whatever it is
	@sh setup.sh install-force

init: ## Make the folders checkpoints/ data/ logs/
	@sh setup.sh init

check-deps: ## Which packages are wanted, which are there
	@sh setup.sh check-deps

##@ Tests and measurements
test: dev ## The tests, but for the slow ones, the browser's and the GPU's
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadscope $(ARGS)

quick-test: dev ## Under a minute: is the model usable?
	$(PY) -m pytest -q test_model.py $(ARGS)

test-slow: dev ## The slow tests
	$(PY) -m pytest -m slow $(ARGS)

test-gpu: dev ## The tests that need a GPU
	$(PY) -m pytest -m gpu $(ARGS)

test-browser: dev ## The pages in a real Chromium, which it says how to get
	@sh setup.sh browser
	$(PY) -m pytest -m browser $(ARGS)

bench: dev ## The benchmarks
	$(PY) -m benchmarks.run_all $(ARGS)

soak: runtime ## Half an hour of mixed load on the server: does anything grow?
	$(PY) -m benchmarks.soak --minutes 30 $(ARGS)

lint: dev ## Ruff over the whole house
	$(PY) -m ruff check . $(ARGS)

##@ Deployment
IMAGE ?= my-llm
VERSION ?= $(shell (git describe --tags --always --dirty 2>/dev/null || echo unknown) | tr -c 'A-Za-z0-9_.\n-' '-')
COMPOSE ?= docker compose
remote = $(shell printf %s '$(REGISTRY)/$(IMAGE)' | tr A-Z a-z)
export BASE_IMAGE TORCH_INDEX NETWORK # for compose, and for deploy/verify.py

image: ## Build the container image (BASE_IMAGE=... TORCH_INDEX=... NETWORK=host)
	docker build $(if $(NETWORK),--network $(NETWORK)) $(foreach each,BASE_IMAGE TORCH_INDEX,$(if $($(each)),--build-arg $(each)=$($(each)))) \
		--build-arg VERSION=$(VERSION) -t $(IMAGE):latest -t $(IMAGE):$(VERSION) .

image-push: ## Push it, by its version and as latest (REGISTRY=ghcr.io/you)
	$(need_registry)
	for tag in $(VERSION) latest; do \
		docker tag $(IMAGE):$(VERSION) $(remote):$$tag && docker push $(remote):$$tag || exit 1; done

image-digest: ## What the registry calls the image that was pushed (REGISTRY=ghcr.io/you)
	$(need_registry)
	@docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' $(remote):$(VERSION) | grep '^$(remote)@'

image-sbom: build/tools/.installed ## List what is in the image: build/sbom.spdx.json
	build/tools/bin/syft scan docker:$(IMAGE):$(VERSION) --output spdx-json=build/sbom.spdx.json --quiet

obs-up: deploy/secrets/metrics_token ## Start the server, Prometheus and Grafana: ports 8000, 9090, 3000
	@mkdir -p checkpoints logs
	$(COMPOSE) up --detach --build

obs-down: ## Stop them; sessions and figures stay
	$(COMPOSE) down

verify-deploy: dev build/tools/.installed ## Check all of it: build, run, stop, watch and push the image
	$(PY) -m deploy.verify

verify-cluster: runtime ## Train on two hosts, made of network namespaces, and compare with one (Linux, root)
	$(PY) deploy/two_hosts.py

need_registry = @[ -n "$(REGISTRY)" ] || { echo "Where to? make $@ REGISTRY=ghcr.io/you" >&2; exit 2; }

# The folder is private, so the file need not be: containers read it as users of their own.
deploy/secrets/metrics_token:
	@mkdir -p -m 700 deploy/secrets
	@$(or $(PYTHON),python3) -c 'import secrets; print(secrets.token_hex(32))' >$@.tmp
	@chmod 644 $@.tmp && mv $@.tmp $@

build/tools/.installed: deploy/requirements.txt
	@$(or $(PYTHON),python3) -m venv build/tools
	@build/tools/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

##@ Tidying up
# find does not follow links, and rm takes a link away without touching what it points to.
clean: ## Remove caches and build files
	@find . \( -path ./.git -o -path ./venv -o -path ./.venv -o -path ./data -o -path ./checkpoints -o -path ./logs \) \
		-prune -o -type d \( -name __pycache__ -o -name .pytest_cache -o -name .ruff_cache \
		-o -name .hypothesis -o -name '*.egg-info' \) -prune -exec rm -rf {} +
	@rm -rf build dist .coverage
	@echo "Caches are gone."

clean-checkpoints: ## Delete the trained models (asks first; FORCE=1 does not)
	@$(drop_checkpoints); [ -z "$$refused" ]

# Caches of data are named by sixteen digits of a sum; a user's own folder, such as data/media-2024, is not.
four = [0-9a-f][0-9a-f][0-9a-f][0-9a-f]
digest = $(four)$(four)$(four)$(four)

clean-all: clean ## clean, and logs, caches of data, venv/ (and, if you say so, checkpoints)
	@for folder in logs data; do \
		[ ! -h $$folder ] || echo "$$folder/ is a link: what it points to stays."; done
	@[ -h logs ] || rm -rf logs
	@[ -h data ] || rm -rf $(foreach kind,tokens media,data/$(kind)-$(digest) data/$(kind)-$(digest).*) data/digests.json
	@rm -rf venv
	@echo "Logs, caches of data and venv/ are gone; your own files under data/ stay."
	@$(drop_checkpoints)

# Checkpoints are hours of work, so they go only after a yes.
define drop_checkpoints
refused=; \
if [ -h checkpoints ]; then echo "checkpoints/ is a link: what it points to stays."; \
elif [ -z "$$(ls -A checkpoints 2>/dev/null)" ]; then echo "No checkpoints to delete."; \
else \
	answer=n; \
	if [ "$(FORCE)" = 1 ]; then answer=y; \
	elif [ -t 0 ]; then \
		du -sh checkpoints/* 2>/dev/null; printf "Delete these checkpoints? [y/N] "; read -r answer; \
	else refused=yes; echo "No terminal to ask on. Deleting them: make $@ FORCE=1" >&2; fi; \
	case "$$answer" in \
		y | Y | yes) rm -rf checkpoints; mkdir checkpoints; echo "Checkpoints are gone." ;; \
		*) echo "Checkpoints are kept." ;; \
	esac; \
fi
endef

# What the targets above wait for; silent and done in a blink when venv/ is complete.
runtime:
	@sh setup.sh runtime

dev:
	@sh setup.sh dev
