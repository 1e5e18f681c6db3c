//! A picture in tiles, as Idefics3 and SmolVLM see it.

use anyhow::Result;

use super::raster::Raster;
use super::resize::Filter;
use super::size::check_area;

/// Squares of this edge, row after row, and the whole as one square; unless the picture is one.
pub fn split(image: Raster, edge: usize, filter: Filter) -> Result<Vec<Raster>> {
    let (rows, columns) = grid(image.height, image.width, edge)?;
    let whole = image.resized(columns * edge, rows * edge, filter);
    if (rows, columns) == (1, 1) {
        return Ok(vec![whole]);
    }
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let tile = |(row, column): (usize, usize)| {
        let at = |place: usize| (place * edge) as isize;
        whole.part(at(column), at(row), edge, edge, &vec![0; whole.channels])
    };
    let mut tiles: Vec<Raster> = places.map(tile).collect();
    tiles.push(whole.resized(edge, edge, filter));
    Ok(tiles)
}

/// The rows and columns of tiles of this edge: whole ones, with the proportions of the picture as near as they allow.
pub fn grid(height: usize, width: usize, edge: usize) -> Result<(usize, usize)> {
    let ratio = width as f64 / height as f64;
    let (new_height, new_width) = if width >= height {
        let new_width = width.next_multiple_of(edge);
        (((new_width as f64 / ratio) as usize).next_multiple_of(edge), new_width)
    } else {
        let new_height = height.next_multiple_of(edge);
        (new_height, ((new_height as f64 * ratio) as usize).next_multiple_of(edge))
    };
    check_area(new_height, new_width)?;
    Ok((new_height / edge, new_width / edge))
}
