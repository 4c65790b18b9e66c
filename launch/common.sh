# shellcheck shell=bash disable=SC2034,SC2329 # used where it is sourced
# What the launch scripts share: options, their checks, quoting, and running or showing commands.
#
# A script sets OPTION to its options and their defaults, and calls `parse_options "$@"`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=false
ACTION=""
MAIN_FLAGS=()
declare -A OPTION

# Commands of a dry run are shown here, also where the output of a function is captured.
exec 3>&1

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

note() {
  printf '# %s\n' "$1" >&2
}

# The script's own text of help: the comment at its top.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# Words as one line that any POSIX shell reads as the same words.
quote() {
  local word line=() apostrophe="'\\''"
  for word in "$@"; do
    if [[ -z $word || $word == *[!A-Za-z0-9_@%+=:,./-]* ]]; then
      word="'${word//\'/"$apostrophe"}'"
    fi
    line+=("$word")
  done
  printf '%s' "${line[*]}"
}

# Runs a command; a dry run shows it instead.
run() {
  if [[ $DRY_RUN == true ]]; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    "$@"
  fi
}

# The output of a command; a dry run shows the command, and takes the first word for its output.
ask() {
  local assumed=$1
  shift
  run "$@" || return
  if [[ $DRY_RUN == true ]]; then
    printf '%s\n' "$assumed"
  fi
}

# Runs a command with a text as its input; a dry run shows both.
run_with_input() {
  local text=$1
  shift
  if [[ $DRY_RUN == true ]]; then
    printf "%s <<'EOF'\n%s\nEOF\n" "$(quote "$@")" "$text" >&3
  else
    "$@" <<<"$text"
  fi
}

parse_options() {
  local name value
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --dry_run) DRY_RUN=true ;;
      --)
        MAIN_FLAGS=("${@:2}")
        break
        ;;
      --*)
        name=${1#--}
        name=${name%%=*}
        [[ $name =~ ^[a-z_]+$ && -v OPTION[$name] ]] || fail "--$name: no such option; see $0 --help"
        if [[ $1 == *=* ]]; then
          value=${1#*=}
        elif [[ ${OPTION[$name]} == false ]]; then
          value=true
        else
          (($# > 1)) || fail "--$name: needs a value"
          value=$2
          shift
        fi
        OPTION[$name]=$value
        ;;
      *)
        [[ -z $ACTION ]] || fail "'$1': one action only; flags of the program stand after --"
        ACTION=$1
        ;;
    esac
    shift
  done
  [[ -n $ACTION ]] || fail "name an action; see $0 --help"
}

# check NAME PATTERN EXPECTED: an option that must match a pattern.
check() {
  local value=${OPTION[$1]}
  [[ $value =~ ^($2)$ ]] || fail "--$1 = '$value': expected $3"
}

check_name() {
  check name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    "at most 40 lower-case letters, digits and '-', a letter first"
}

check_number() {
  check "$1" '[1-9][0-9]{0,5}' "a positive number"
}

readonly BUCKET_PATH='gs://[a-z0-9][-a-z0-9._]*[a-z0-9]/[^[:space:]]+'

check_bucket() {
  check "$1" "$BUCKET_PATH" "gs://BUCKET/PATH, which all hosts can reach"
}

check_directory() {
  check "$1" "$BUCKET_PATH|/.*" "an absolute path, or gs://BUCKET/PATH"
}

# The program with its flags, behind the interpreter $1, as the words of TRAIN.
train_command() {
  local config=${OPTION[config]} word
  [[ -n $config ]] || fail "--config: needs a recipe, such as configs/imagenet_prc.py:k=1"
  [[ -f $ROOT/${config%%:*} ]] || fail "--config = '$config': no such file in $ROOT"
  TRAIN=("$1" -m vmoe_prc.main "--config=$config" "--workdir=${OPTION[workdir]}")
  TRAIN+=("${MAIN_FLAGS[@]}")
  if [[ -n ${OPTION[data_dir]} ]]; then
    TRAIN=(env "TFDS_DATA_DIR=${OPTION[data_dir]}" "${TRAIN[@]}")
  fi
  for word in "${TRAIN[@]}"; do
    [[ $word != *[[:cntrl:]]* ]] || fail "a flag of the program holds a control character"
  done
  for word in "${MAIN_FLAGS[@]}"; do
    [[ $word == --* ]] || fail "'$word': flags of the program begin with --"
  done
}

# Version of JAX that everything is tested with.
jax_version() {
  sed -n 's/^jax==//p' "$ROOT/requirements.txt"
}
