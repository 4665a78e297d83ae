#!/bin/sh
# A Slurm of one node under a folder, without systemd; needs Debian's slurm-wlm.  The node pretends to 16 processors, 64 GB and
# one GPU, so that two jobs of the profile fit beside each other in everything but the GPU.
#
#     tests/one_node_slurm.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH
#     tests/one_node_slurm.sh stop FOLDER
#
# FOLDER is new and its path short, since a socket's may have 107 letters.  There is no accounting, which needs a database: ended
# jobs stand for MinJobAge in `scontrol show jobs` and `squeue --states=all`.
set -eu
folder=$2

if [ "$1" = stop ]; then
    for name in slurmd slurmctld munged; do
        while pkill -F "$folder/$name.pid" 2>/dev/null; do sleep 0.2; done
    done
    exit 0
fi

for command in munged slurmctld slurmd sbatch; do
    command -v "$command" >/dev/null || { echo "$command is not here: apt-get install slurm-wlm munge" >&2; exit 2; }
done
node=$(hostname -s)
user=$(id -un)
set -- $(python3 -c 'import socket
s = [socket.socket() for _ in range(2)]
[a.bind(("127.0.0.1", 0)) for a in s]
print(*[a.getsockname()[1] for a in s])')
mkdir -p "$folder/state" "$folder/spool" "$folder/bin"
chmod 755 "$folder"
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"

cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$1
SlurmdPort=$2
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MinJobAge=600
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
END
echo "NodeName=$node Name=gpu File=/dev/null" >"$folder/gres.conf" # Slurm wants a device; a count alone it takes for none
# Snakemake's job steps start srun without SLURM_CONF
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$folder/slurm.conf" "$(command -v srun)" >"$folder/bin/srun"
chmod 755 "$folder/bin/srun"

munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
SLURM_CONF=$folder/slurm.conf
export SLURM_CONF
slurmctld
slurmd
for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && exit 0
    pgrep -F "$folder/slurmctld.pid" >/dev/null || break
    sleep 0.2
done
echo "the node does not become idle:" >&2
grep -h -E 'fatal|error' "$folder/slurmctld.log" "$folder/slurmd.log" >&2
exit 1
