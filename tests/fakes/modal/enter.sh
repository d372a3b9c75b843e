# Puts a command into a container: enter.sh FOLDER MOUNTS COMMAND...
# Runs in fresh mount and process namespaces (see container.py). The container sees this machine's files, with its own
# writes on top of them in memory, the files uploaded for it, its FOLDER as /__modal, and the volumes that the lines of
# MOUNTS name as "folder path ro|rw", with tabs between.
set -e
folder=$1 mounts=$2
shift 2
mount -t tmpfs tmpfs "$folder/root"
root=$folder/root/merged
mkdir "$folder/root/upper" "$folder/root/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/root/upper,workdir=$folder/root/work" "$root"
mount -t proc proc "$root/proc"
for machine in /dev /sys; do mount --rbind "$machine" "$root$machine"; done
# whatever else has a file system of its own: the overlay does not reach into it
while read -r _ _ _ _ point _; do
    case $point in
        / | /proc | /proc/* | /dev | /dev/* | /sys | /sys/* | "$folder"/*) continue ;;
    esac
    if [ -d "$point" ]; then mkdir -p "$root$point"; fi
    if [ -e "$root$point" ]; then mount --bind "$point" "$root$point"; fi
done </proc/self/mountinfo
cp -a "$folder/files/." "$root/"
mkdir -p "$root/__modal"
mount --bind "$folder" "$root/__modal"
tab=$(printf '\t')
while IFS=$tab read -r volume path access; do
    mkdir -p "$root$path"
    mount --bind "$volume" "$root$path"
    if [ "$access" = ro ]; then mount -o remount,bind,ro "$root$path"; fi
done <"$mounts"
exec chroot "$root" /bin/sh -c 'cd /root && exec "$@"' sh "$@"
