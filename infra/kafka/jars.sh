# To be sourced: jars from Maven Central, kept in a cache.
#
#   jars_fetch WHAT HERE CACHE   fetch what HERE/pom.xml names into CACHE/jars, once
#
# It needs Java 17 and, the first time, Maven. It exits with 3, saying that WHAT is not
# available, when one is missing or Maven could not fetch the jars.

jars_fetch() {
  local what=$1 here=$2 cache=$3 major want
  unavailable() { echo "$what is not available: $*" >&2; exit 3; }
  command -v java >/dev/null || unavailable "there is no java"
  major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1)
  [ "${major:-0}" -ge 17 ] || unavailable "Java 17 is needed, this is ${major:-unknown}"
  # The stamp holds the versions, so that a changed pom fetches again.
  want=$(cksum <"$here/pom.xml")
  [ "$(cat "$cache/stamp" 2>/dev/null)" = "$want" ] && return
  command -v mvn >/dev/null || unavailable "the jars are not in $cache and there is no mvn to fetch them"
  rm -rf "$cache/jars" && mkdir -p "$cache/jars"
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$cache/jars" >&2 ||
    unavailable "Maven could not fetch the jars"
  echo "$want" >"$cache/stamp"
}
