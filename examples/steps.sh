# What the walks share: where they work, and steps that are printed, run, and not run twice.

stop() {
    echo "$*" >&2
    exit 2
}

# begin DATA OUT: check what is needed, go to OUT, and keep the user's own models out of it.
begin() {
    DATA=$1 OUT=$2
    for needed in kather2016/manifest.csv weights/mobilenetv2_100.imagenet.safetensors; do
        [ -f "$DATA/$needed" ] ||
            stop "no $needed in $DATA: name the folder of the data, walk.sh DATA [OUT]"
    done
    command -v tiaft >/dev/null ||
        stop "no command tiaft here: activate the environment that tiaft_plugin is installed in"
    python -c "import tiaft_plugin" 2>/dev/null ||
        stop "no tiaft_plugin in $(command -v python || echo "any python"): activate its environment"
    DATA=$(cd "$DATA" && pwd)
    mkdir -p "$OUT" 2>/dev/null && cd "$OUT" || stop "$OUT cannot be written: name another folder"
    export DATA TIAFT_MODELS=$PWD/models
    trap 'echo; echo "stopped: the same command goes on"; exit 130' INT TERM
    echo "in $PWD, with"
    echo "export DATA=$DATA EXAMPLE=$EXAMPLE TIAFT_MODELS=$TIAFT_MODELS"
}

# step RESULT COMMAND: print the command, and run it unless RESULT is there already. A command that
# fails for some of its inputs has written RESULT, too: .failed says that it is to run again.
step() {
    printf '\n$ %s\n' "${2#$'\n'}"
    if [ -e "$1" ] && [ "$(cat .failed 2>/dev/null)" != "$1" ]; then
        echo "done before: $1"
        return
    fi
    eval "$2" || {
        echo "$1" >.failed
        echo "this step failed; run again, the walk goes on with it" >&2
        exit 1
    }
    rm -f .failed
}
