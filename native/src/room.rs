//! How much a socket takes.

use std::mem::size_of;
use std::os::fd::RawFd;

/// Asks how many bytes are unsent.
const SIOCOUTQNSD: libc::c_ulong = 0x894B;
/// Positions in what SO_MEMINFO gives.
const SEND_BUFFER: usize = 3;
const QUEUED: usize = 5;
/// The most data of a record, and more than what its header and its tag take.
const RECORD_BYTES: usize = 16_384;
const RECORD_OVERHEAD: usize = 96;

/// Bytes that the kernel takes before it says that the socket is full, or a few less; None if that is not known.
///
/// The same as `typha.worker.transport.kernel_room_bytes`, for a tenth of its time.
pub fn bytes(socket: RawFd) -> Option<usize> {
    let mut unsent: libc::c_int = 0;
    // Safety: the kernel writes one number there.
    if unsafe { libc::ioctl(socket, SIOCOUTQNSD as _, &raw mut unsent) } != 0 {
        return None; // it is not TCP
    }
    let [limit] = option::<1>(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT)?;
    let memory = option::<9>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    let free = memory[SEND_BUFFER].saturating_sub(memory[QUEUED]);
    let free = free - free / 16; // a packet's memory is not data alone
    let room = if limit > 0 { free.min(limit.saturating_sub(unsent.unsigned_abs())) } else { free };
    usize::try_from(room).ok()
}

/// Bytes of data whose records fit into so many bytes.
pub fn data_in(room: usize) -> usize {
    room.saturating_sub((room / RECORD_BYTES + 1) * RECORD_OVERHEAD)
}

fn option<const COUNT: usize>(socket: RawFd, level: libc::c_int, name: libc::c_int) -> Option<[u32; COUNT]> {
    let mut value = [0; COUNT];
    let mut size = size_of::<[u32; COUNT]>() as libc::socklen_t;
    // Safety: the kernel writes at most `size` bytes there.
    let error = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut size) };
    (error == 0 && size as usize == size_of::<[u32; COUNT]>()).then_some(value)
}
