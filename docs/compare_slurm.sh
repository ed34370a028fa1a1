#!/usr/bin/env bash
#SBATCH --job-name=compare
#SBATCH --array=0-7           # eight tasks share the cells of one comparison, on whatever nodes they land
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@120    # two minutes before the end: as Ctrl-C, the cell is given back and kept as far as it is
#SBATCH --requeue             # a task whose node fails begins again, and goes on with what is left
#SBATCH --output=compare_%A_%a.txt
#
# One comparison by the tasks of a SLURM array:
#
#   DATA=/shared/liver OUTPUT=/shared/comparison sbatch compare_slurm.sh --methods none,nnunet,random --seeds 3
#
# What follows the script's name are options of `monai-autoaug compare`, the same for all tasks. DATA and OUTPUT are
# folders that all nodes see. Submit it again, with more methods or seeds, too: what is done stays.
set -euo pipefail
: "${DATA:?the folder of the data set, which all nodes see}"
: "${OUTPUT:?the folder of the comparison, which all nodes see}"

# The first task waits for what the others work on, takes over what one that died had begun, and writes the last tables;
# the others end when no cell is free, and give their GPUs back.
wait=()
if [ "${SLURM_ARRAY_TASK_ID:-0}" -ne "${SLURM_ARRAY_TASK_MIN:-0}" ]; then wait=(--no-wait); fi

# exec, so that the signal above reaches the command
exec monai-autoaug compare --data "$DATA" --output "$OUTPUT" ${wait[@]+"${wait[@]}"} "$@"
