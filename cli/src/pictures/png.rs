//! The chunks of a PNG, of which PIL reads more than the standard allows: sums of pixels are not looked at, nor is what
//! stands behind them.

use std::borrow::Cow;

use anyhow::{ensure, Result};
use flate2::{Crc, Decompress, FlushDecompress, Status};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

struct Chunk<'b> {
    name: &'b [u8],
    data: &'b [u8],
    /// Its length is not above that of the file, and its sum is right.
    whole: bool,
}

/// The chunks up to the end of the file, of which the last may be a part.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (head, body) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let data = &body[..length.min(body.len())];
        let sum = body.get(length..).and_then(|end| end.first_chunk::<4>());
        let name = &rest[4..8];
        rest = body.get(length + 4..).unwrap_or_default();
        Some(Chunk { name, data, whole: sum == Some(&sum_of(name, data)) })
    })
}

fn sum_of(name: &[u8], data: &[u8]) -> [u8; 4] {
    let mut sum = Crc::new();
    sum.update(name);
    sum.update(data);
    sum.sum().to_be_bytes()
}

/// True if all chunks of a PNG are there to its end, as they were written.
pub fn is_whole(bytes: &[u8]) -> bool {
    let mut chunks = chunks(bytes).take_while(|chunk| chunk.whole);
    chunks.any(|chunk| chunk.name == b"IEND")
}

/// A PNG as the standard has it, of one as PIL takes it.
///
/// # Errors
/// If PIL takes it neither: a chunk in front of the pixels is damaged, or the pixels are.
pub fn mended(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if is_whole(bytes) {
        return Ok(bytes.into());
    }
    let mut mended = SIGNATURE.to_vec();
    let mut all = chunks(bytes).peekable();
    while let Some(chunk) = all.next_if(|chunk| chunk.name != b"IDAT") {
        let name = String::from_utf8_lossy(chunk.name);
        ensure!(chunk.whole, "the file is damaged: the checksum of its part '{name}' is wrong");
        put(&mut mended, chunk.name, chunk.data);
    }
    let mut pixels = Vec::new();
    while let Some(chunk) = all.next_if(|chunk| chunk.name == b"IDAT") {
        pixels.extend_from_slice(chunk.data);
    }
    check(&pixels)?;
    put(&mut mended, b"IDAT", &pixels);
    put(&mut mended, b"IEND", &[]);
    Ok(mended.into())
}

fn put(bytes: &mut Vec<u8>, name: &[u8], data: &[u8]) {
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&sum_of(name, data));
}

/// Pixels have a sum of their own, which counts if it is there.
fn check(pixels: &[u8]) -> Result<()> {
    let (mut stream, mut out) = (Decompress::new(true), vec![0; 1 << 16]);
    loop {
        let read = stream.total_in() as usize;
        let before = stream.total_out();
        match stream.decompress(&pixels[read..], &mut out, FlushDecompress::None) {
            Ok(Status::StreamEnd) => return Ok(()),
            // Their number tells whether they are cut off.
            Ok(_) if stream.total_out() == before => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                anyhow::bail!("the file is damaged: its pixels cannot be unpacked ({error})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, RgbImage};

    use super::*;
    use crate::pictures::{head, picture};

    fn image() -> RgbImage {
        RgbImage::from_fn(33, 40, |x, y| {
            image::Rgb([x * 71 % 256, y * 53 % 256, x * y % 251].map(|c| c as u8))
        })
    }

    /// The beginning up to the pixels, and the pixels.
    fn parts() -> (Vec<u8>, Vec<u8>) {
        let mut bytes = Vec::new();
        DynamicImage::from(image())
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .unwrap();
        let of =
            |pixels: bool| chunks(&bytes).filter(move |chunk| (chunk.name == b"IDAT") == pixels);
        let pixels = of(true).flat_map(|chunk| chunk.data.to_vec()).collect();
        let mut front = SIGNATURE.to_vec();
        of(false)
            .filter(|chunk| chunk.name != b"IEND")
            .for_each(|c| put(&mut front, c.name, c.data));
        (front, pixels)
    }

    /// Each as Pillow 13 reads it.
    #[test]
    fn sums_of_pixels_and_what_stands_behind_them_do_not_count_and_all_else_does() {
        let (front, pixels) = parts();
        let chunk = |name: &[u8], data: &[u8], good: bool| {
            let mut bytes = Vec::new();
            put(&mut bytes, name, data);
            let last = bytes.len() - 1;
            bytes[last] ^= u8::from(!good);
            bytes
        };
        let (good, bad) = (chunk(b"IDAT", &pixels, true), chunk(b"IDAT", &pixels, false));
        let (end, text) = (chunk(b"IEND", b"", true), chunk(b"tEXt", b"a\0b", false));
        let (half, rest) = pixels.split_at(500);
        let halves = [chunk(b"IDAT", half, false), chunk(b"IDAT", rest, false)].concat();
        let between =
            [chunk(b"IDAT", half, true), chunk(b"tEXt", b"a\0b", true), chunk(b"IDAT", rest, true)];
        let mut flipped = pixels.clone();
        flipped[1000] ^= 1;
        let mut sum = pixels.clone();
        *sum.last_mut().unwrap() ^= 1;
        let less = |count: usize| chunk(b"IDAT", &pixels[..pixels.len() - count], false);
        let mut long = good.clone();
        long[3] = long[3].wrapping_add(5);
        let good_end = [&good[..], &end].concat();
        let mut head = front.clone();
        *head.last_mut().unwrap() ^= 1;
        for (name, front, rest, reads) in [
            ("whole", &front, good_end.clone(), true),
            ("a wrong sum", &front, [&bad[..], &end].concat(), true),
            ("wrong sums of both halves", &front, [&halves[..], &end].concat(), true),
            (
                "a part of no length",
                &front,
                [&chunk(b"IDAT", b"", false)[..], &bad, &end].concat(),
                true,
            ),
            ("a wrong sum behind", &front, [&good[..], &text, &end].concat(), true),
            (
                "a wrong sum of the end",
                &front,
                [&good[..], &chunk(b"IEND", b"", false)].concat(),
                true,
            ),
            ("no end", &front, good.clone(), true),
            ("no end and no sum", &front, good[..good.len() - 4].to_vec(), true),
            ("half an end", &front, good_end[..good_end.len() - 6].to_vec(), true),
            ("something behind", &front, [&good_end[..], b"trash trash"].concat(), true),
            ("a length beyond the file", &front, long, true),
            ("no sum of the pixels", &front, [&less(4)[..], &end].concat(), true),
            ("a wrong sum of the head", &head, good_end.clone(), false),
            ("a wrong sum in front", &front, [&text[..], &good_end].concat(), false),
            ("pixels that are cut off", &front, [&less(20)[..], &end].concat(), false),
            ("a file that is cut off", &front, good[..good.len() * 6 / 10].to_vec(), false),
            (
                "a bit that is turned",
                &front,
                [&chunk(b"IDAT", &flipped, false)[..], &end].concat(),
                false,
            ),
            (
                "a wrong sum of the pixels",
                &front,
                [&chunk(b"IDAT", &sum, false)[..], &end].concat(),
                false,
            ),
            (
                "pixels with something between",
                &front,
                [&between.concat()[..], &bad, &end].concat(),
                false,
            ),
            ("no pixels", &front, end.clone(), false),
        ] {
            let bytes = [&front[..], &rest].concat();
            let read = picture::decoded(&bytes);
            assert_eq!(read.is_ok(), reads, "{name}: {:?}", read.as_ref().err());
            // Before a run as in it.
            assert_eq!(head::size(&bytes).is_ok(), reads, "{name}");
            if let Ok(read) = read {
                assert!(read == image(), "{name}");
            }
        }
    }
}
