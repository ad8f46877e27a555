// Exact Euclidean distance to the nearest pixel of another value.
//
// Separable: a sweep down and a sweep up give the distance g within each column, then each row needs
//
//   d(c)^2 = min over k of  k^2 + g(c + k)^2 ,
//
// where the end of the run of equal value that holds c counts as 0 and nothing beyond it can be nearer. The
// minimum is searched outwards by growing k, 32 columns at a time, until k^2 reaches the largest d^2 left
// among them: the cost follows the size of the objects, which is small for nuclei. Distances below
// kDistanceReach come from this alone: g is a byte, which lies in the result's own memory until its row is
// done, and squares are 16-bit integers. Runs with larger distances are done again with full depths by the
// lower envelope of parabolas (Meijster, Roerdink, Hesselink: A general algorithm for computing distance
// transforms in linear time, 2000), so the cost per pixel is bounded whatever the object.
#pragma once

#include "nucfast/view.hpp"

namespace nucfast {

constexpr int kDistanceReach = 126;

// Distance of each pixel's centre to that of the nearest pixel of another value, in pixels; 0 where `image`
// is zero. The outside of the image is no pixel: an object at the border is as deep as if it went on. Where
// no pixel of another value exists the distance is infinite.
//
//   T      bool (any non-zero byte is true) or Label
//   out    (H, W), shape of `image`; must not overlap it
//
// Squared distances are exact integers (sides up to 2^24 pixels, which the caller guarantees), rounded once
// to float. Threads take strips of rows; the result does not depend on their number.
template <typename T>
void distance_transform(Plane<const T> image, int threads, Plane<float> out);

}  // namespace nucfast
