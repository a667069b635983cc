# The device's side of ssh_link.py, sent whole: `sh -c THIS NONCE ACTION ARGUMENT...`. Any POSIX shell on Linux.
#
# One folder per account is both the lock and all that is put on the device. The empty file owner-PID-START-BOOT
# in it names the process that holds it: a `guard`, which lives as long as its connection and removes the folder
# when that ends, however it ends. PID alone is not enough, since numbers are given out again: START is when the
# process began, in clock ticks, BOOT the boot it belongs to. A folder whose owner is dead is taken over by
# renaming that very file, so that of two who try one wins.
#
# Every action ends with the line `@@NONCE rc=CODE@@`; without it the connection was lost. A refusal is the line
# `@@NONCE refused CLASS TEXT@@`, CLASS one of the harness's result classes.
set -u
umask 077
nonce=$0 action=$1
shift
base=${TMPDIR:-/tmp}/alpharho-$(id -u)
boot=$(cat /proc/sys/kernel/random/boot_id)

refuse() {
    printf '\n@@%s refused %s %s@@\n' "$nonce" "$1" "$(printf '%s' "$2" | tr '\n' ' ')"
    exit 1
}

# refuse_fault CLASS TEXT: what the system says about space is its own class.
refuse_fault() {
    case $2 in
        *"No space left"* | *"quota exceeded"* | *"File too large"*) refuse no-space "$2" ;;
        *) refuse "$1" "$2" ;;
    esac
}

# started PID: when it began; nothing when it is gone or a zombie. The name before `) ` may hold anything.
started() {
    sed -n 's/.*) [^ZX] //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 19
}

me=owner-$$-$(started "$$")-$boot

# alive OWNER: sets pid and start, too.
alive() {
    rest=${1#owner-}
    pid=${rest%%-*}
    rest=${rest#*-}
    start=${rest%%-*}
    [ "${rest#*-}" = "$boot" ] && [ "$(started "$pid")" = "$start" ]
}

# kill_process PID START: that process and its group; returns when it is gone.
kill_process() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ "$(started "$1")" = "$2" ] || return 0
        kill -KILL "-$1" 2>/dev/null
        kill -KILL "$1" 2>/dev/null
        sleep 0.1 2>/dev/null || sleep 1
    done
    refuse transport-lost "process $1 cannot be ended"
}

# end_run FOLDER: kill the run whose number stands in the folder's file `run`.
end_run() {
    [ -s "$1/run" ] || return 0
    read -r pid start <"$1/run"
    kill_process "$pid" "$start"
}

# leave OWNER: remove the folder that OWNER holds. Moved first, so that no run can begin in it any more.
leave() {
    [ -e "$base/$1" ] && mv "$base" "$base.$1"
    [ -d "$base.$1" ] || return 0
    end_run "$base.$1"
    rm -rf "$base.$1"
}

take() {
    for attempt in 1 2 3 4 5 6; do
        if error=$(mkdir "$base" 2>&1); then
            error=$(touch "$base/$me" 2>&1) && return
            rmdir "$base"
            refuse_fault unreachable "$error"
        fi
        case $error in *exists*) ;; *) refuse_fault unreachable "$error" ;; esac
        set -- "$base"/owner-*
        if [ -L "$base" ] || { [ -e "$base" ] && ! [ -O "$base" ]; }; then
            refuse unreachable "$base there belongs to somebody else"
        elif ! [ -e "$1" ]; then # its owner is just coming or going
            sleep 1
            [ "$attempt" -lt 4 ] || rmdir "$base" 2>/dev/null
        elif alive "${1##*/}"; then
            refuse unreachable "another measurement is running there (process $pid)"
        else
            mv "$1" "$base/$me" 2>/dev/null && leave "$me"
        fi
    done
    refuse unreachable "$base there is in the way"
}

held() {
    [ -e "$base/$1" ] || refuse transport-lost "the folder on the device is gone"
}

# Hold the folder until standard input ends.
guard() {
    trap '' HUP PIPE
    export LC_ALL=C # refuse_fault reads messages
    take
    printf '\n@@%s ready %s@@\n' "$nonce" "$me"
    while read -r _; do :; done
    leave "$me"
}

# clean OWNER: remove what a guard left whose connection was lost.
clean() {
    alive "$1" && kill_process "$pid" "$start"
    mv "$base/$1" "$base/$me" 2>/dev/null && leave "$me"
    leave "$1"
}

# put OWNER NAME BYTES: standard input into the folder; prints its SHA-256 as it is on the device.
put() {
    export LC_ALL=C
    held "$1"
    free=$(stat -f -c '%a * %S' "$base" 2>/dev/null) # bytes, for shell arithmetic
    if [ -n "$free" ] && [ "$(($free))" -lt "$(($3 * 2))" ]; then
        refuse no-space "$(($free)) bytes are free, $(($3 * 2)) needed"
    fi
    error=$({ cat >"$base/$2.part"; } 2>&1) || refuse_fault transport-lost "$error"
    sha256sum <"$base/$2.part" && mv "$base/$2.part" "$base/$2"
}

# run OWNER SECONDS FILE ARGUMENT: Python runs a file of the folder. It has a process group of its own, whose
# number stands in `run` before it starts: there is no moment at which a run cannot be found.
run() {
    held "$1"
    python=$HOME/.alpharho/bin/python3
    [ -x "$python" ] || python=python3
    setsid=$(command -v setsid) # BusyBox's timeout makes no group
    cd "$base" || exit
    (
        read -r pid _ </proc/self/stat
        echo "$pid $(started "$pid")" >"$base/run" || {
            held "$1"
            refuse no-space "the run's number cannot be written"
        }
        exec $setsid timeout -k 2 "$2" "$python" "$3" "$4" </dev/null
    )
    set -- "$?"
    read -r pid _ <"$base/run" && kill -KILL "-$pid" 2>/dev/null # whom it left behind
    rm -f "$base/run"
    return "$1"
}

case $action in guard | clean | put | run) ;; *) exit 2 ;; esac
("$action" "$@")
printf '\n@@%s rc=%s@@\n' "$nonce" "$?"
