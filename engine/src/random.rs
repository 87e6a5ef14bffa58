//! Chance, from the kernel.

/// Random bytes, for identities and for the seeds of keys. The kernel's generator is good for both; it makes us
/// wait until its pool is ready.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0u8; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the pointer and the length describe the rest of `out`.
        let got = unsafe { libc::getrandom(out[filled..].as_mut_ptr().cast(), N - filled, 0) };
        // It fails only by a signal, before the kernel's pool is ready.
        filled += usize::try_from(got).unwrap_or(0);
    }
    out
}
