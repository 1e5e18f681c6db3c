//! A picture in tiles, as Idefics3 and SmolVLM see it.

use anyhow::Result;

use super::raster::Raster;
use super::resize::Filter;
use super::size::Size;

/// Squares of this edge, row after row, and the whole as one square; with the number of rows and columns. A picture
/// that is one square itself has no rows and columns.
pub fn split(image: Raster, edge: usize, filter: Filter) -> Result<(Vec<Raster>, usize, usize)> {
    let ratio = image.width as f64 / image.height as f64;
    // Whole tiles, with the proportions of the picture as near as they allow.
    let (height, width) = if image.width >= image.height {
        let width = image.width.next_multiple_of(edge);
        (((width as f64 / ratio) as usize).next_multiple_of(edge), width)
    } else {
        let height = image.height.next_multiple_of(edge);
        (height, ((height as f64 * ratio) as usize).next_multiple_of(edge))
    };
    let (height, width) = Size::Exact { height, width }.of(image.height, image.width)?;
    let whole = image.resized(width, height, filter);
    let (rows, columns) = (height / edge, width / edge);
    if (rows, columns) == (1, 1) {
        return Ok((vec![whole], 0, 0));
    }
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let tile = |(row, column): (usize, usize)| {
        let at = |place: usize| (place * edge) as isize;
        whole.part(at(column), at(row), edge, edge, &vec![0; whole.channels])
    };
    let mut tiles: Vec<Raster> = places.map(tile).collect();
    tiles.push(whole.resized(edge, edge, filter));
    Ok((tiles, rows, columns))
}
