# Millrace. `make` alone lists what can be done.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export CGO_ENABLED ?= 0

BIN     := .local/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/millrace-dev/millrace/shared/telemetry.Version=$(VERSION)
# The exporter of traces brings gRPC's pages about requests, and they bring templates, with
# which the linker keeps every method of every type: a fifth of each function.
TAGS    := grpcnotrace
# Modules of their own, so that their dependencies stay out of the functions.
NESTED  := infra/local infra/lint infra/browser

##@ Use it

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
	/^##@ / {printf "\n%s\n", substr($$0, 5)} \
	/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the functions, the local runner and the load generator into .local/bin
	@mkdir -p $(BIN)
	go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/ ./functions/... ./infra/loadgen
	cd infra/local && go build -trimpath -ldflags '$(LDFLAGS)' -o ../../$(BIN)/millrace .

.PHONY: run
run: build ## Run the whole platform on this machine; Ctrl-C stops it, state stays in .local (RATE=events/s)
	@exec $(BIN)/millrace up

.PHONY: status
status: ## Print the status of the running platform once
	@$(BIN)/millrace status

.PHONY: clean
clean: ## Remove what the platform stored and built (.local)
	rm -rf .local

MODEL ?= purchase_prediction_model
# What reads and decides over HTTP; --name LEARNING_URL is where it is.
LEARNING = $$($(BIN)/millrace env --name LEARNING_URL)

.PHONY: train
train: ## Train a model now on the running platform (MODEL)
	@curl -sS --fail-with-body "$(LEARNING)/train" $${LEARNING_TOKEN:+-H "Authorization: Bearer $$LEARNING_TOKEN"} -H 'content-type: application/json' -d '{"model":"$(MODEL)","reason":"make train"}'

.PHONY: rollback
rollback: ## Let the former version of a model serve again on the running platform (MODEL, TO=version)
	@curl -sS --fail-with-body "$(LEARNING)/rollback" $${LEARNING_TOKEN:+-H "Authorization: Bearer $$LEARNING_TOKEN"} -H 'content-type: application/json' -d '{"model":"$(MODEL)","to":"$(TO)","reason":"make rollback"}'

##@ Check it

.PHONY: test
test: check test-unit test-chain test-manifests ## Run every test that needs nothing but this machine

.PHONY: check
check: ## Formatting and vet
	@test -z "$$(gofmt -l functions shared infra)" || { echo "gofmt would change:"; gofmt -l functions shared infra; exit 1; }
	go vet ./...
	@for m in $(NESTED); do echo "go vet $$m"; (cd $$m && go vet ./...); done

.PHONY: test-unit
test-unit: build ## Unit, contract, property and in-process chain tests, with the race detector
	TEST_S3_PROGRAM=$(CURDIR)/$(BIN)/millrace TEST_PROGRAMS=$(CURDIR)/$(BIN) CGO_ENABLED=1 go test -race ./...

.PHONY: test-chain
test-chain: build ## The whole platform as real processes, with processes killed at random
	cd infra/local && go test -count=1 ./...

.PHONY: test-manifests
test-manifests: ## Manifests against Knative's own types, and the event graph
	cd infra/lint && go test -count=1 ./...

.PHONY: test-kafka
test-kafka: build ## The platform on a real Apache Kafka that gets killed; needs Java 17 and Maven
	cd infra/local && TEST_REAL_KAFKA=1 go test -run '^TestRealKafka$$' -count=1 -timeout 15m -v .

# The last version of MinIO, which can be had as a Go program only.
MINIO := github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

.PHONY: test-minio
test-minio: ## Notifications of a real MinIO server, which is built (minutes, once), reach ingest
	@mkdir -p $(BIN)
	@if test -x $(BIN)/minio || GOBIN=$(CURDIR)/$(BIN) go install -trimpath -ldflags='-s -w' $(MINIO); \
	  then TEST_MINIO=$(CURDIR)/$(BIN)/minio go test -count=1 -v ./infra/minio; \
	  else echo "skipped: $(MINIO) cannot be built here"; fi

MLFLOW := $(BIN)/mlflow-venv

.PHONY: test-mlflow
test-mlflow: build ## The registry's client and predict with a real MLflow server, which is installed (minutes, once)
	@if test -x $(MLFLOW)/bin/mlflow || { python3 -m venv $(MLFLOW) && \
	    $(MLFLOW)/bin/pip install -q -r shared/registry/registrytest/requirements.txt; }; \
	  then TEST_S3_PROGRAM=$(CURDIR)/$(BIN)/millrace TEST_MLFLOW=$(CURDIR)/$(MLFLOW)/bin/mlflow \
	    go test -count=1 -v -run 'TestMLflow|TestAliasDecides' ./shared/registry ./functions/predict; \
	  else echo "skipped: MLflow cannot be installed here (python3 with venv, and its packages)"; fi

.PHONY: test-skew
test-skew: build ## Served features against recomputed ones, streams of five seeds (SKEW_EVENTS)
	for seed in 1 2 3 4 5; do \
	  TEST_S3_PROGRAM=$(CURDIR)/$(BIN)/millrace TEST_PROGRAMS=$(CURDIR)/$(BIN) SKEW_SEED=$$seed SKEW_EVENTS=$(or $(SKEW_EVENTS),5000) \
	    go test -count=1 -timeout 15m -v ./infra/skew; done

.PHONY: test-etl
test-etl: ## Ten rounds of ETL with kill -9 at random points: gold equals a rebuild, byte for byte (ROUNDS)
	ETL_ROUNDS=$(or $(ROUNDS),10) go test -run '^TestKilledAtRandomGoldEqualsARebuild$$' -count=1 -timeout 30m -v ./functions/etl-step

TRAINING_VENV := .local/training-venv

# The environment is made once for each state of the requirements.
.PHONY: training-venv
training-venv: ## Python environment of the trainer and of MLflow, from pinned requirements
	@cd infra/training && sum=$$(cat requirements*.txt | sha256sum) && venv=../../$(TRAINING_VENV) && \
	  if [ "$$(cat $$venv/made 2>/dev/null)" = "$$sum" ]; then exit 0; fi; \
	  mkdir -p ../../.local && { [ -x $$venv/bin/pip ] || python3 -m venv $$venv; } && \
	  { $$venv/bin/pip install -q -r requirements-dev.txt || { sleep 5; $$venv/bin/pip install -q -r requirements-dev.txt; }; } && \
	  echo "$$sum" > $$venv/made

.PHONY: test-training
test-training: build ## The trainer's tests, on one thread; skipped where its Python packages cannot be had
	@if $(MAKE) -s training-venv; then cd infra/training && export PATH="$(CURDIR)/$(TRAINING_VENV)/bin:$$PATH" OMP_NUM_THREADS=1 && \
	  ruff check && ruff format --check && mypy && python -m pytest; \
	  else echo "skipped: the packages of infra/training/requirements.txt cannot be installed here"; fi

.PHONY: test-ray
test-ray: build ## The RayJob's entrypoint, environment and parameters on a Ray cluster of this machine, with MLflow and S3
	@if $(MAKE) -s training-venv; then cd infra/training && TEST_RAYJOB=1 OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(TRAINING_VENV)/bin:$$PATH" \
	  python -m pytest tests/test_rayjob.py; \
	  else echo "skipped: the packages of infra/training/requirements-ray.txt cannot be installed here"; fi

.PHONY: test-image
test-image: ## The instructions of the trainer's Dockerfile in a folder, packages from nothing; skipped where they cannot be had
	@if $(MAKE) -s training-venv; then cd infra/training && TEST_IMAGE=1 ../../$(TRAINING_VENV)/bin/python -m pytest tests/test_image.py; \
	  else echo "skipped: the packages of infra/training/requirements.txt cannot be installed here"; fi

.PHONY: test-learning
test-learning: build ## Trained, judged, served, refused, rolled back, with each part of the loop killed; skipped where the Python packages cannot be had
	@if $(MAKE) -s training-venv; then cd infra/local && TEST_LEARNING=1 MILLRACE_TEST_BIN=$(CURDIR)/$(BIN) \
	  go test -run '^TestLearning$$' -count=1 -timeout 20m -v .; \
	  else echo "skipped: the packages of infra/training/requirements.txt cannot be installed here"; fi

SUPERSET_VENV := .local/superset-venv

# Made once for each state of the requirements.
.PHONY: superset-venv
superset-venv:
	@sum=$$(sha256sum < infra/superset/requirements.txt) && venv=$(SUPERSET_VENV) && \
	  if [ "$$(cat $$venv/made 2>/dev/null)" = "$$sum" ]; then exit 0; fi; \
	  mkdir -p .local && { [ -x $$venv/bin/pip ] || python3 -m venv $$venv; } && \
	  $$venv/bin/pip install -q -r infra/superset/requirements.txt && echo "$$sum" > $$venv/made

.PHONY: superset
superset: superset-venv ## Superset with dashboards of sales, funnel and categories, in front of the running platform
	@DATABASE_URL="$$($(BIN)/millrace env --name DATABASE_URL)" SUPERSET_VENV=$(CURDIR)/$(SUPERSET_VENV) \
	  SUPERSET_HOME=$(CURDIR)/.local/superset exec infra/superset/up

.PHONY: test-superset
test-superset: build ## Every chart's query by a real Superset on gold; skipped where its packages cannot be had (PICTURES=folder)
	@if $(MAKE) -s superset-venv; then TEST_SUPERSET=$(CURDIR)/$(SUPERSET_VENV) TEST_PROGRAMS=$(CURDIR)/$(BIN) PICTURES=$(PICTURES) \
	  go test -count=1 -timeout 40m -v ./infra/superset; \
	  else echo "skipped: the packages of infra/superset/requirements.txt cannot be installed here"; fi

TIMESCALE := .local/timescale

.PHONY: test-timescale
test-timescale: ## The tables by time in a real TimescaleDB (in WebAssembly; needs Node 20); skipped where it cannot be had
	@mkdir -p $(TIMESCALE) && cp infra/postgres/timescale/* $(TIMESCALE)/ && \
	  if (cd $(TIMESCALE) && npm ci --silent --ignore-scripts); then TEST_TIMESCALE=$(CURDIR)/$(TIMESCALE) \
	  go test -count=1 -timeout 30m -v -run "^Test(Timescale|Readme|Active|Make|Series|Anomalies|Predictions|Contracts)_" ./shared/timeseries ./functions/store; \
	  else echo "skipped: the packages of infra/postgres/timescale cannot be installed here (npm, Node 20)"; fi

.PHONY: test-drift-loop
test-drift-loop: build ## From injected drift to predictions by a model trained since, all of it real, with the time of each hop; skipped where the Python packages cannot be had
	@if $(MAKE) -s training-venv; then cd infra/local && TEST_DRIFT_LOOP=1 MILLRACE_TEST_BIN=$(CURDIR)/$(BIN) \
	  go test -run '^TestDriftLoop$$' -count=1 -timeout 40m -v .; \
	  else echo "skipped: the packages of infra/training/requirements.txt cannot be installed here"; fi

.PHONY: test-debezium
test-debezium: ## The embedded change data capture against a real Debezium; needs Java 17, Maven and PostgreSQL
	cd infra/local && TEST_DEBEZIUM=1 go test -run '^TestDebezium$$' -count=1 -timeout 15m -v ./internal/cdc

.PHONY: test-console
test-console: build ## The console in a real Chromium, in front of the platform (PICTURES=folder keeps what it saw)
	cd infra/browser && TEST_PROGRAMS=$(CURDIR)/$(BIN) PICTURES=$(PICTURES) go test -count=1 -timeout 30m -v ./...

.PHONY: test-grafana
test-grafana: build ## Every dashboard drawn by a real Grafana in Chromium; GRAFANA_HOME is its folder (PICTURES=folder)
	cd infra/browser && GRAFANA_HOME=$(GRAFANA_HOME) TEST_PROGRAMS=$(CURDIR)/$(BIN) PICTURES=$(PICTURES) \
	  go test -count=1 -timeout 30m -run '^TestGrafana$$' -v .

.PHONY: test-otel
test-otel: build ## One event's trace through the platform, as a real Collector gets it (built once, minutes)
	cd infra/otel && TEST_PROGRAMS=$(CURDIR)/$(BIN) go test -count=1 -timeout 20m -v ./...

.PHONY: chaos
chaos: build ## Ten rounds of kill -9 under load (CHAOS_ROUNDS, CHAOS_SEED)
	cd infra/local && CHAOS_ROUNDS=$(or $(CHAOS_ROUNDS),10) CHAOS_SEED=$(CHAOS_SEED) \
	  go test -run '^(TestNothingIsLostWhenProcessesAreKilled|TestGoldAndFeaturesSurviveKills)$$' -parallel 1 -count=1 -timeout 60m -v .

.PHONY: chaos-features
chaos-features: ## Ten rounds of kill -9 of Redis and featurize, features against a replay (CHAOS_ROUNDS, CHAOS_SEED)
	FEATURES_KILL_ROUNDS=$(or $(CHAOS_ROUNDS),10) FEATURES_KILL_SEED=$(CHAOS_SEED) \
	  go test -run '^TestFeaturesEqualAReplayAfterKills$$' -count=1 -timeout 30m -v ./functions/featurize

.PHONY: chaos-series
chaos-series: build ## Rounds of 20,000 readings delivered 28,000 times while parts are killed: rows and anomalies exact (ROUNDS, SERIES_SEED)
	cd infra/local && SERIES_ROUNDS=$(or $(ROUNDS),5) SERIES_READINGS=20000 SERIES_SEED=$(SERIES_SEED) MILLRACE_TEST_BIN=$(CURDIR)/$(BIN) \
	  go test -run '^TestAnomaliesAreExactWhateverIsKilled$$' -count=1 -timeout 60m -v .

.PHONY: e2e
e2e: ## The platform on the Knative that KUBECONFIG points at; needs kubectl, ko and KO_DOCKER_REPO
	E2E=1 VERSION=$(VERSION) go test -count=1 -timeout 40m -v ./infra/knative/e2e

.PHONY: fuzz
fuzz: ## Fuzz every parser and encoder for FUZZTIME each
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZTIME),20s) -fuzzminimizetime 20x $$p; done; done

.PHONY: lint
lint: ## The linters of .golangci.yml; needs golangci-lint 2 on the PATH
	golangci-lint run ./...
	@for m in $(NESTED) infra/otel; do (cd $$m && golangci-lint run ./...); done

##@ Measure it

.PHONY: bench
bench: build ## Go benchmarks of the hot paths and one end-to-end report
	go run ./infra/bench
	$(MAKE) bench-store

# A Collector with what the configurations in infra/otel use; building it takes minutes, once.
.PHONY: otel
otel:
	@mkdir -p $(BIN)
	cd infra/otel && go build -o ../../$(BIN)/otel .

.PHONY: bench-telemetry
bench-telemetry: build otel ## What telemetry costs in CPU time, off and on side by side, with a real Collector and without (BENCH_SECONDS, ROUNDS)
	go run ./infra/bench -seconds $(or $(BENCH_SECONDS),8) -telemetry-rounds $(or $(ROUNDS),30) telemetry

FASTAPI := $(BIN)/fastapi-venv

.PHONY: bench-predict
bench-predict: ## predict against XGBoost behind FastAPI, side by side (BENCH_SECONDS a measurement)
	@if test -x $(FASTAPI)/bin/uvicorn || { python3 -m venv $(FASTAPI) && \
	    $(FASTAPI)/bin/pip install -q -r functions/predict/testdata/requirements.txt; }; \
	  then TEST_FASTAPI=$(CURDIR)/$(FASTAPI)/bin/python go test -count=1 -v -run '^TestAgainstFastAPI$$' ./functions/predict; \
	  else echo "skipped: FastAPI and XGBoost cannot be installed here (python3 with venv, and their packages)"; fi
	BENCH_PREDICT=1 go test -count=1 -v -run '^TestLookupLatency$$' ./functions/predict
	go test -run '^$$' -bench 'BenchmarkHTTP|BenchmarkPredict' -benchmem ./functions/predict ./shared/model

.PHONY: bench-store
bench-store: ## Rows a second into PostgreSQL, and CPU of store and server a row (STORE_BENCH_ROWS); the storm of 28,000 deliveries of 20,000 readings
	STORE_BENCH_ROWS=$(or $(STORE_BENCH_ROWS),500000) go test -run '^$$' -bench 'Handle|Readings' -benchtime 1x ./functions/store
	STORE_STORM=1 go test -count=1 -v -run '^TestSeries_duplicateStormHoldsDistinctRows$$' ./functions/store

.PHONY: eval-detect
eval-detect: ## Anomaly detection against ground truth, by configuration and type; with NAB_DIR=folder on NAB's series too
	go run ./infra/evaldetect

.PHONY: eval-drift
eval-drift: ## How often data that has not drifted is said to have, over HOURS (20) of each of four simulated datacenters and of the shop
	FALSE_ALARMS=$(or $(HOURS),20) SHOP_HOURS=$(or $(HOURS),20) go test -count=1 -timeout 30m \
	  -run 'TestFalseAlarms|TestInjectedDrift|TestSampleOfABundle|TestShop_' -v ./functions/drift

.PHONY: image-sizes
image-sizes: ## Compressed size of every image; fails above 20 MB (needs ko)
	infra/knative/image-sizes
