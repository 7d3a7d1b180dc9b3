#!/usr/bin/env bash
# Runs a real Apache Kafka, one broker without containers, for tests and for trying
# the local runner against it. It needs Java 17 and, the first time, Maven.
#
#   real.sh fetch              fetch the jars into the cache
#   real.sh run   DIR [PORT]   run in the foreground with its data in DIR
#   real.sh start DIR [PORT]   run in the background and wait until it listens
#   real.sh stop  DIR          stop what start has started
#
# It listens on 127.0.0.1:PORT (9092) and uses PORT+1 for itself. The cache is
# KAFKA_CACHE, by default a folder in the user's cache folder. Exit code 3 means
# that Java or Maven is missing or that Maven could not fetch the jars.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KAFKA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace/kafka}

. "$here/jars.sh"
fetch() { jars_fetch "real Kafka" "$here" "$cache"; }

java_args=()
prepare() {
  local dir=$1 port=$2
  fetch
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  cat >"$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.segment.bytes=67108864
log.retention.bytes=268435456
EOF
  java_args=(
    -Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1
    -Dlog4j2.configurationFile="$here/log4j2.yaml" -cp "$cache/jars/*"
  )
  if [ ! -e "$dir/data/meta.properties" ]; then
    java "${java_args[@]}" kafka.tools.StorageTool format --standalone \
      -t "$(java "${java_args[@]}" kafka.tools.StorageTool random-uuid)" -c "$dir/server.properties" >&2
  fi
}

case ${1:-} in
fetch) fetch ;;
run)
  prepare "${2:?DIR}" "${3:-9092}"
  exec java "${java_args[@]}" kafka.Kafka "$2/server.properties"
  ;;
start)
  port=${3:-9092}
  prepare "${2:?DIR}" "$port"
  java "${java_args[@]}" kafka.Kafka "$2/server.properties" >"$2/kafka.log" 2>&1 &
  echo $! >"$2/pid"
  for _ in $(seq 300); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "Kafka listens on 127.0.0.1:$port; use it with KAFKA_BROKERS=127.0.0.1:$port"
      exit
    fi
    kill -0 "$(cat "$2/pid")" 2>/dev/null || { tail -20 "$2/kafka.log" >&2; exit 1; }
    sleep 0.2
  done
  echo "Kafka does not listen on 127.0.0.1:$port after a minute" >&2
  exit 1
  ;;
stop)
  pid=$(cat "${2:?DIR}/pid")
  # Only a process that is what start has started.
  if ! ps -o args= -p "$pid" 2>/dev/null | grep -q 'kafka\.Kafka'; then
    echo "process $pid is not that Kafka, or no longer runs" >&2
    exit
  fi
  kill "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
  rm -f "$2/pid"
  ;;
*)
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
  ;;
esac
