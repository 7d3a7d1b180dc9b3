#!/usr/bin/env bash
# Runs Kafka Connect with Debezium's PostgreSQL connector, one worker without
# containers, for tests and for trying it against the local runner. It needs Java 17
# and, the first time, Maven.
#
#   connect.sh fetch     fetch the jars into the cache
#   connect.sh run DIR   run in the foreground, with offsets and settings in DIR
#
# run reads CONNECT_BROKERS (127.0.0.1:9092), CONNECT_PORT of its REST interface (8083),
# CONNECT_CONFIG (connector.json beside this file), and what that file takes from the
# environment: the database as DEBEZIUM_HOST, _PORT, _USER, _PASSWORD, _DATABASE. The
# cache is DEBEZIUM_CACHE, by default a folder in the user's cache folder. Exit code 3
# means that Java or Maven is missing or that Maven could not fetch the jars.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${DEBEZIUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace/debezium}

. "$here/../kafka/jars.sh"
fetch() { jars_fetch "Debezium" "$here" "$cache"; }

case ${1:-} in
fetch) fetch ;;
run)
  dir=${2:?DIR}
  fetch
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  cat >"$dir/worker.properties" <<PROPERTIES
bootstrap.servers=${CONNECT_BROKERS:-127.0.0.1:9092}
listeners=http://127.0.0.1:${CONNECT_PORT:-8083}
offset.storage.file.filename=$dir/offsets
offset.flush.interval.ms=1000
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
config.providers=env
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
PROPERTIES
  exec java -Xms64m -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dlog4j2.configurationFile="$here/log4j2.properties" -cp "$cache/jars/*" \
    org.apache.kafka.connect.cli.ConnectStandalone "$dir/worker.properties" "${CONNECT_CONFIG:-$here/connector.json}"
  ;;
*)
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
  ;;
esac
