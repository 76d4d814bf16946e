# rsh by way of PBS's task manager:  /bin/sh tmrsh.sh PBS_TMRSH HOST TEXT...
#
# rsh and ssh give the words of a command, joined, to a shell on the host, and launchers count on
# that: hydra puts its proxy's path in quotes, Open MPI sets variables first. pbs_tmrsh executes the
# words as they are, so the shell is named here.
tmrsh=$1
host=$2
shift 2
exec "$tmrsh" "$host" /bin/sh -c "$*"
